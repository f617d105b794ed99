"""What has to be ready before a training: token stores, importance, detected shares, enough memory."""
