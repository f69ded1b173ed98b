//! The worker and its keeper as processes of their own. One program for all of it: most of these tests wait, and wait together.

mod agents;
mod at_reset;
mod console;
mod devices;
mod engine;
mod guest;
mod silent_stores;
mod worker;
