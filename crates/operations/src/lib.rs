//! What an administrator can do to the guests of a VM Host: create, change, start, stop, look, explain, repair.
//!
//! Each operation is a function from a typed request to a typed outcome; commands parse and print, nothing more, so that
//! another front end (a web manager, a cluster agent) calls the same functions. Operations decide by `plan`, store by
//! `registry`, act by `engine` and the worker's control protocol.

pub mod view;
