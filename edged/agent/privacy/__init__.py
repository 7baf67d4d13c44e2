"""What an upstream may see of a question: values that identify people are replaced by placeholders."""
