"""The noise-prediction UNet, and the encoder and decoder of the first stages."""
