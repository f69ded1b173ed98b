//! Confines the worker: what it may still do after it has taken its descriptors.
