"""Running detectors over data sets, images and videos, and the studies that need a network."""
