//! Images: what disks are made of.
//!
//! | file | what |
//! |---|---|
//! | `images` | all images of a machine: opened when it is built, taken and let go of when the guest moves |
//! | `image` | one of them: its file, its size, what was done with it |
//! | `locks` | permission bytes, by which QEMU and Godwit keep each other from an image that is in use |
//! | `probe` | what a file looks like whose format nobody named |
//! | `ring` | requests on their way: guest memory to and from a file, without a copy |
//! | `stats` | counts for `query-blockstats` |
//! | `throttle` | limits on bytes and requests per second |

mod error;
mod image;
mod images;
mod locks;
pub(crate) mod probe;
pub(crate) mod ring;
mod stats;
mod throttle;

pub(crate) use error::Error;
pub use image::Image;
pub use images::Images;
pub(crate) use images::{KIND, RemoveError, is_bare};
pub(crate) use stats::Operation;
