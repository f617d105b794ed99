"""What a training needs first: token stores, measured importance, detected shares, memory."""
