//! Interrupt controllers: local APIC, I/O APIC, the pair of 8259s.

use super::{Layout, Visitor};

/// `apic`: a local APIC. Not carried: current count, LVT CMCI, the upper half of its base address.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ApicState {
    pub base: u32,
    pub id: u8,
    pub arb_id: u8,
    pub tpr: u8,
    pub spurious_vec: u32,
    pub log_dest: u8,
    pub dest_mode: u8,
    pub isr: [u32; 8],
    pub tmr: [u32; 8],
    pub irr: [u32; 8],
    /// Timer, thermal, performance, LINT0, LINT1, error.
    pub lvt: [u32; 6],
    pub esr: u32,
    pub icr: [u32; 2],
    pub divide_conf: u32,
    /// log2 of the divider, from `divide_conf`.
    pub count_shift: i32,
    pub initial_count: u32,
    /// Virtual clock when the count was loaded, ns.
    pub initial_count_load_time: i64,
    pub next_time: i64,
    /// -1: none.
    pub timer_expiry: i64,
    pub sipi: Option<ApicSipi>,
}

impl Layout for ApicState {
    const NAME: &'static str = "apic";
    const VERSION: u32 = 3;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.value("apicbase", &mut self.base)?;
        v.value("id", &mut self.id)?;
        v.value("arb_id", &mut self.arb_id)?;
        v.value("tpr", &mut self.tpr)?;
        v.value("spurious_vec", &mut self.spurious_vec)?;
        v.value("log_dest", &mut self.log_dest)?;
        v.value("dest_mode", &mut self.dest_mode)?;
        v.array("isr", &mut self.isr)?;
        v.array("tmr", &mut self.tmr)?;
        v.array("irr", &mut self.irr)?;
        v.array("lvt", &mut self.lvt)?;
        v.value("esr", &mut self.esr)?;
        v.array("icr", &mut self.icr)?;
        v.value("divide_conf", &mut self.divide_conf)?;
        v.value("count_shift", &mut self.count_shift)?;
        v.value("initial_count", &mut self.initial_count)?;
        v.value("initial_count_load_time", &mut self.initial_count_load_time)?;
        v.value("next_time", &mut self.next_time)?;
        v.value("timer_expiry", &mut self.timer_expiry)
    }

    fn subsections<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.subsection(&mut self.sipi)
    }
}

/// A vCPU that waits for its start-up interrupt; not used with KVM's own APIC.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ApicSipi {
    pub vector: i32,
    pub waiting: i32,
}

impl Layout for ApicSipi {
    const NAME: &'static str = "apic_sipi";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.value("sipi_vector", &mut self.vector)?;
        v.value("wait_for_sipi", &mut self.waiting)
    }
}

/// `ioapic`: instance 0 is KVM's, instance 1 (with `acpi=on`) a device of its own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IoapicState {
    pub id: u8,
    pub ioregsel: u8,
    pub irr: u32,
    pub redirections: [u64; 24],
}

impl Layout for IoapicState {
    const NAME: &'static str = "ioapic";
    const VERSION: u32 = 3;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.value("id", &mut self.id)?;
        v.value("ioregsel", &mut self.ioregsel)?;
        v.unused("unused", 8)?;
        v.value("irr", &mut self.irr)?;
        v.array("ioredtbl", &mut self.redirections)
    }
}

/// `i8259`: instance 0 is the master, 1 the slave.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PicState {
    pub last_irr: u8,
    pub irr: u8,
    pub imr: u8,
    pub isr: u8,
    pub priority_add: u8,
    pub irq_base: u8,
    pub read_reg_select: u8,
    pub poll: u8,
    pub special_mask: u8,
    pub init_state: u8,
    pub auto_eoi: u8,
    pub rotate_on_auto_eoi: u8,
    pub special_fully_nested_mode: u8,
    pub init4: u8,
    pub single_mode: u8,
    pub elcr: u8,
    pub ltim: Option<u8>,
}

impl Layout for PicState {
    const NAME: &'static str = "i8259";
    const VERSION: u32 = 1;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.value("last_irr", &mut self.last_irr)?;
        v.value("irr", &mut self.irr)?;
        v.value("imr", &mut self.imr)?;
        v.value("isr", &mut self.isr)?;
        v.value("priority_add", &mut self.priority_add)?;
        v.value("irq_base", &mut self.irq_base)?;
        v.value("read_reg_select", &mut self.read_reg_select)?;
        v.value("poll", &mut self.poll)?;
        v.value("special_mask", &mut self.special_mask)?;
        v.value("init_state", &mut self.init_state)?;
        v.value("auto_eoi", &mut self.auto_eoi)?;
        v.value("rotate_on_auto_eoi", &mut self.rotate_on_auto_eoi)?;
        v.value("special_fully_nested_mode", &mut self.special_fully_nested_mode)?;
        v.value("init4", &mut self.init4)?;
        v.value("single_mode", &mut self.single_mode)?;
        v.value("elcr", &mut self.elcr)
    }

    fn subsections<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.subsection_of("i8259/ltim", "ltim", &mut self.ltim)
    }
}
