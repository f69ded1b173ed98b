//! What tests stand on: stand-ins and throw-away surroundings. Never linked into the product.

pub mod fake;
