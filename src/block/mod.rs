//! Images: what disks are made of.
//!
//! | file | what |
//! |---|---|
//! | `images` | all images of a machine: opened when it is built, taken and let go of when the guest moves |
//! | `image` | one of them: its file, its size, what was done with it |
//! | `layer` | one file of an image: the image itself, or one that it stands on |
//! | `qcow2` | images with tables, and what they stand on |
//! | `overlay` | a new image put over that of a running guest |
//! | `gate` | what requests pass, so that what is below can be changed while none is under way |
//! | `locks` | permission bytes, by which QEMU and Godwit keep each other from an image that is in use |
//! | `probe` | what a file looks like whose format nobody named |
//! | `lanes` | the ways of requests: one of the next two |
//! | `ring` | requests on their way: guest memory to and from a file, without a copy |
//! | `ordered` | a thread that does the requests of an image with tables, one after the other |
//! | `stats` | counts for `query-blockstats` |
//! | `throttle` | limits on bytes and requests per second |

mod error;
mod gate;
mod image;
mod images;
mod lanes;
mod layer;
mod locks;
mod ordered;
mod overlay;
pub(crate) mod probe;
pub(crate) mod qcow2;
pub(crate) mod ring;
mod stats;
mod throttle;

pub(crate) use error::Error;
pub(crate) use gate::Pass;
pub use image::Image;
pub use images::Images;
pub(crate) use images::{KIND, RemoveError, is_bare};
pub(crate) use lanes::Lanes;
pub(crate) use layer::{Layer, full_name, paths};
pub(crate) use overlay::Overlay;
pub(crate) use stats::Operation;
