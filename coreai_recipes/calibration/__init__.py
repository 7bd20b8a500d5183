"""What a text says of the inputs of a decoder's matrices, and weights fitted to lose least on them."""
