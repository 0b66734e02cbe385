"""What a detector's boxes are worth: figures, images, and one page that holds them all."""
