"""What decoding one token at a time needs: beams, caches, repeats."""
