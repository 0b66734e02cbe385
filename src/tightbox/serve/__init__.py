"""A detector behind HTTP: one endpoint, the Open Inference Protocol, metrics, and a page to drop images on."""
