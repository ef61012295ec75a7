"""Networks: the table of architectures, surgery on torchvision's models, weights, model folders."""
