//! The numbers of the descriptors hpvmnetd is started with, as ARCHITECTURE.md, 'The process of a switch', lists them.

/// The link to the keeper, who makes it.
pub const LINK: i32 = 3;
/// The launch description, for a successor of the keeper.
pub const LAUNCH: i32 = 4;
pub const CONTROL: i32 = 5;
pub const LOG: i32 = 6;
pub const RUN_FOLDER: i32 = 7;
/// The first one's only: it says `running` when the switch forwards.
pub const READY: i32 = 8;
/// The two programs, held: their folder may be closed to the switch's user.
pub const KEEPER_PROGRAM: i32 = 14;
pub const PROGRAM: i32 = 15;
/// Above every number here.
pub const BEHIND_ALL: i32 = 32;
