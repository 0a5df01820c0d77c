"""What an app does around the graphs, in numpy and Pillow: pictures, prompts, boxes, masks."""
