"""What a detector's boxes are worth: figures, pictures, and one page that holds them all."""
