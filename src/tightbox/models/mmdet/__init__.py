"""VFNet checkpoints of mmdetection, in and out, without mmdetection."""

from tightbox.models.mmdet.convert import export_state, import_checkpoint, load_published, settings

__all__ = ["export_state", "import_checkpoint", "load_published", "settings"]
