//! The cache against models: its core without a runtime, and the whole of it, over the embedded store, under the
//! store's own suite.
