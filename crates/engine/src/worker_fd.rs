//! The numbers of the descriptors a worker is started with, as ARCHITECTURE.md, 'Worker's descriptors', lists them. Whoever
//! starts a keeper gives them, the worker takes them.

/// The link to the keeper, who makes it.
pub const LINK: i32 = 3;
pub const LAUNCH: i32 = 4;
pub const CONTROL: i32 = 5;
pub const DOOR: i32 = 6;
pub const RECORD: i32 = 7;
pub const LOG: i32 = 8;
pub const QEMU_LOG: i32 = 9;
pub const CONSOLE_LOG: i32 = 10;
pub const RUN_FOLDER: i32 = 11;
/// The first worker's only.
pub const READY: i32 = 12;
/// A hold on QEMU, from the keeper.
pub const QEMU: i32 = 13;
/// The two programs, held: their folder may be closed to the worker's user.
pub const KEEPER_PROGRAM: i32 = 14;
pub const WORKER_PROGRAM: i32 = 15;
/// The first folder of images for the guest's drives; the others follow. The worker is told their paths in this order, each
/// by an argument that begins with [`FOLDER`].
pub const FIRST_FOLDER: i32 = 16;
pub const FOLDER: &str = "folder:";
/// More folders than this are not held: each drive may have another one.
pub const FOLDERS_MAX: usize = 64;
/// The first store to be watched; the others follow, as many as there are, told by addresses behind [`STORE`]. What lies under
/// a store follows it, told by the same address. No other number is behind them.
pub const FIRST_STORE: i32 = 80;
pub const STORE: &str = "store:";
