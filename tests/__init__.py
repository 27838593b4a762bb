"""Tests. Real clients and real servers; nothing of our own code is mocked."""
