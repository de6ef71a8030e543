"""Files made elsewhere: published weights, and the pickles of the original."""
