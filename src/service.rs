//! Layer 1: life with the supervisor. systemd's protocols, and the fallback where systemd does not run us.
//!
//! Who supervises is decided once, in [`handshake`], from variables that systemd addressed to this very process. After
//! that there is no guessing: [`notify`] speaks to the supervisor or to nobody, [`sockets`] adopts what was passed or
//! binds, and only the stand-alone mode knows a pid file ([`pidfile`]).

pub mod deadline;
pub mod directories;
pub mod handshake;
pub mod lives;
pub mod lock;
pub mod mask;
pub mod notify;
pub mod pidfile;
pub mod process;
pub mod record;
pub mod signals;
pub mod sockets;
pub mod systemd;
pub mod units;
pub mod watchdog;
