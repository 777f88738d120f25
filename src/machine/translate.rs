//! Virtual addresses, as a vCPU sees them.

use super::{Error, Machine};

impl Machine {
    /// The guest-physical addresses behind virtual ones (`None`: not mapped), as vCPU `index`
    /// translates them now. The guest is held for that moment, which nobody is told.
    pub(crate) fn translate(
        &self,
        index: u32,
        addresses: &[u64],
    ) -> Result<Vec<Option<u64>>, Error> {
        let control = self.control();
        if control.gone {
            return Err(Error::Gone);
        }
        let running = control.state.is_running();
        if running {
            self.close_gate();
        }
        let translated = {
            let vcpu = self.cpus.vcpus[index as usize].lock();
            addresses.iter().map(|&address| vcpu.translate(address)).collect::<Result<_, _>>()
        };
        if running {
            self.cpus.gate.open();
        }
        Ok(translated?)
    }
}
