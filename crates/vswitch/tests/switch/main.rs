//! A whole switch against guests that drive real rings, VIO peers on real sockets, and wires that a test holds.

#![allow(unsafe_code)]

mod bridge;
mod counting;
mod forwarding;
mod guest;
mod holding;
mod hostile;
mod lan_boot;
mod lives;
mod memory;
mod net;
mod offloads;
mod rules;
mod segment;
mod streams;
