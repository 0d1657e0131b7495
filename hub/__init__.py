"""The kernels as a repository of the Hugging Face Hub, for the users of its distribution `kernels`: docs/hub.md."""
