//! Images: sources, decoding, augmentation, the prefetching loader, the latent cache.
