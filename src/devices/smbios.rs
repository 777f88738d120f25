//! `-smbios`: tables that tell a guest who the machine is, as files in fw_cfg, and in memory where
//! kernels look that no firmware started.

use super::{Built, Device, Error, Kind, Loading, Sections, Slots};
use crate::arch::x86_64::smbios::Tables;
use std::sync::Arc;

pub(crate) const KIND: Kind = Kind { build, ..Kind::NONE };

fn build(slots: &mut Slots<'_>) -> Result<Built, Error> {
    let Some(system) = &slots.config.smbios else { return Ok(Vec::new()) };
    let tables = Tables::new(system, slots.config.identity.uuid);
    slots.items().add_file("etc/smbios/smbios-tables", tables.tables.clone());
    slots.items().add_file("etc/smbios/smbios-anchor", tables.anchor(0));
    Ok(vec![Arc::new(Smbios(tables))])
}

/// The tables of a machine; they have no state.
pub(crate) struct Smbios(Tables);

impl Smbios {
    /// What a kernel that is started here is given.
    pub(crate) fn tables(&self) -> &Tables {
        &self.0
    }
}

impl Device for Smbios {
    fn reset(&self) -> Result<(), Error> {
        Ok(())
    }

    fn save(&self, _sections: &mut Sections) -> Result<(), Error> {
        Ok(())
    }

    fn load(&self, _from: &mut Loading<'_>) -> Result<(), Error> {
        Ok(())
    }
}
