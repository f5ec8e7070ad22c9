"""The network: blocks, conditioning, U-Net, spectrogram, losses."""
