"""The noise-predicting UNet, and the encoder and decoder of the first stages."""
