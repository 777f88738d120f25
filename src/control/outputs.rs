//! Files that the machine would write over what it reads.

use std::path::{Path, PathBuf};

use crate::config::{ChardevBackend, Config, Kernel, MemoryBackend};
use crate::io::Address;
use crate::output::Input;

#[derive(Debug, thiserror::Error)]
#[error("chardev {chardev}: {} would overwrite {input}, which the machine reads", path.display())]
pub struct Error {
    chardev: String,
    path: PathBuf,
    input: String,
}

/// Refuses a character device's file that is the kernel, the initrd, the guest's memory or the
/// stream it arrives by, under whatever name.
pub fn check(config: &Config, incoming: Option<&Address>) -> Result<(), Error> {
    let mut inputs: Vec<&Path> = Vec::new();
    if let Some(boot) = &config.boot {
        if let Kernel::File(kernel) = &boot.kernel {
            inputs.push(kernel);
        }
        inputs.extend(boot.initrd.as_deref());
    }
    if let MemoryBackend::File { path, .. } = &config.memory.backend {
        inputs.push(path);
    }
    if let Some(Address::File { path, .. }) = incoming {
        inputs.push(Path::new(path));
    }
    let inputs: Vec<Input> = inputs.into_iter().filter_map(Input::at).collect();
    for chardev in &config.chardevs {
        let file = match &chardev.backend {
            ChardevBackend::File { path, .. } => Some(path),
            _ => None,
        };
        let log = chardev.log.as_ref().map(|log| &log.path);
        for path in file.into_iter().chain(log) {
            let is = Input::at(path);
            if let Some(input) =
                inputs.iter().find(|input| is.as_ref().is_some_and(|is| is.is(input)))
            {
                let (chardev, input) = (chardev.id.clone(), input.name.clone());
                return Err(Error { chardev, path: path.clone(), input });
            }
        }
    }
    Ok(())
}
