//! Files that the machine would write over what it reads.

use std::path::{Path, PathBuf};

use crate::config::{Chardev, ChardevBackend, Config, Kernel, MemoryBackend};
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
    let outputs: Vec<(&String, &PathBuf)> = config.chardevs.iter().flat_map(outputs).collect();
    if outputs.is_empty() {
        // Names are not looked at for nothing: a file system may not answer.
        return Ok(());
    }
    let inputs: Vec<Input> = inputs.into_iter().filter_map(Input::at).collect();
    for (chardev, path) in outputs {
        let Some(is) = Input::at(path) else { continue };
        if let Some(input) = inputs.iter().find(|input| is.is(input)) {
            let (chardev, input) = (chardev.clone(), input.name.clone());
            return Err(Error { chardev, path: path.clone(), input });
        }
    }
    Ok(())
}

/// The files that a character device writes, with its name.
fn outputs(chardev: &Chardev) -> impl Iterator<Item = (&String, &PathBuf)> {
    let file = match &chardev.backend {
        ChardevBackend::File { path, .. } => Some(path),
        _ => None,
    };
    let log = chardev.log.as_ref().map(|log| &log.path);
    file.into_iter().chain(log).map(|path| (&chardev.id, path))
}
