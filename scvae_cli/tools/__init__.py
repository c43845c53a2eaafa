"""The operations of scvae, such as `embed` and `de`, with one folder for each."""
