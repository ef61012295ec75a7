"""The network's frozen part: where it ends, which of its activations are cached, and the feeds made of them."""
