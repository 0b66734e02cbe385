"""What `/metrics` shows, in a registry of its own so that two servers in one process do not mix."""

from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counters of one server, under names that begin with `tightbox_`."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        counter, histogram = partial(Counter, registry=self.registry), partial(Histogram, registry=self.registry)
        self.requests = counter("tightbox_requests", "Answers, by route and status.", ("route", "status"))
        self.seconds = histogram("tightbox_request_seconds", "From a request's head to its answer.", buckets=SECONDS)
        self.images = counter("tightbox_images", "Images that the network has seen.")
        self.boxes = counter("tightbox_boxes", "Boxes that were answered.")
        self.batch_size = histogram("tightbox_batch_size", "Images that the network saw together.", buckets=SIZES)
        self.batch_seconds = histogram("tightbox_batch_seconds", "Time of the network for a batch.", buckets=SECONDS)
        self.accepted = counter("tightbox_images_accepted", "Images that were accepted.")
        self.waiting = Gauge("tightbox_images_waiting", "Images accepted and not yet answered.", registry=self.registry)

    def note_batch(self, size: int, seconds: float) -> None:
        """A batch is done."""
        self.images.inc(size)
        self.batch_size.observe(size)
        self.batch_seconds.observe(seconds)

    def text(self) -> bytes:
        """All of it in Prometheus's text format."""
        return generate_latest(self.registry)
