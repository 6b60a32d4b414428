"""From folders of pictures to checked examples, cached moments and text."""
