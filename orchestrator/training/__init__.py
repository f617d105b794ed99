"""One run: data prepared, workers trained, decisions taken, results written."""
