"""The colours of charts and image grids, chosen for colour-blind readers (Okabe & Ito 2008)."""

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#6E6E6E"
PALETTE = (BLUE, ORANGE, GREEN, "#CC79A7", "#56B4E9", "#E69F00", "#000000")
# For lines on a web page: the same hues, with a contrast of 3 and more to a white page and to a dark one.
ON_LIGHT = (BLUE, ORANGE, "#008A64", "#B5588F", "#2E86BF", "#A06C00", "#000000")
ON_DARK = ("#56B4E9", "#F28E4B", "#2FBF94", "#E39FC8", "#9ACDF0", "#E9B949", "#FFFFFF")
