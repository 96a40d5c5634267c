"""Retrieval under the names of gem-llm: BM25 on this machine; ``gem serve-search`` serves a corpus."""
