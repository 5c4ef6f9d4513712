"""Images to images: the stimuli of robustness tests, and the toy figures."""
