"""What `/metrics` shows, in a registry of its own so that two servers in one process do not mix."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counters of one server, under names that begin with `tightbox_`."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "tightbox_requests", "Answers, by route and status.", ("route", "status"), registry=self.registry
        )
        self.seconds = Histogram(
            "tightbox_request_seconds", "From a request's head to its answer.", buckets=SECONDS, registry=self.registry
        )
        self.images = Counter("tightbox_images", "Images that the network has seen.", registry=self.registry)
        self.boxes = Counter("tightbox_boxes", "Boxes that were answered.", registry=self.registry)
        self.batch_size = Histogram(
            "tightbox_batch_size", "Images that the network saw together.", buckets=SIZES, registry=self.registry
        )
        self.batch_seconds = Histogram(
            "tightbox_batch_seconds", "Time of the network for a batch.", buckets=SECONDS, registry=self.registry
        )
        self.accepted = Counter("tightbox_images_accepted", "Images that were accepted.", registry=self.registry)
        self.waiting = Gauge("tightbox_images_waiting", "Images accepted and not yet answered.", registry=self.registry)

    def note_batch(self, size: int, seconds: float) -> None:
        """A batch is done."""
        self.images.inc(size)
        self.batch_size.observe(size)
        self.batch_seconds.observe(seconds)

    def text(self) -> bytes:
        """All of it in Prometheus's text format."""
        return generate_latest(self.registry)
