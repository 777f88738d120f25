//! The interval timer and the real-time clock.

use super::{Layout, Visitor};

/// `i8254`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PitState {
    pub irq_disabled: u32,
    pub channels: [PitChannel; 3],
    /// Channel 0's, once more.
    pub next_transition_time: i64,
}

impl Layout for PitState {
    const NAME: &'static str = "i8254";
    const VERSION: u32 = 3;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.value("channels[0].irq_disabled", &mut self.irq_disabled)?;
        v.structures("channels", &mut self.channels)?;
        v.value("channels[0].next_transition_time", &mut self.next_transition_time)
    }
}

/// One counter. Times are ns of the virtual clock.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PitChannel {
    pub count: i32,
    pub latched_count: u16,
    pub count_latched: u8,
    pub status_latched: u8,
    pub status: u8,
    pub read_state: u8,
    pub write_state: u8,
    pub write_latch: u8,
    pub rw_mode: u8,
    pub mode: u8,
    pub bcd: u8,
    pub gate: u8,
    pub count_load_time: i64,
    pub next_transition_time: i64,
}

impl Layout for PitChannel {
    const NAME: &'static str = "pit channel";
    const VERSION: u32 = 2;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.value("count", &mut self.count)?;
        v.value("latched_count", &mut self.latched_count)?;
        v.value("count_latched", &mut self.count_latched)?;
        v.value("status_latched", &mut self.status_latched)?;
        v.value("status", &mut self.status)?;
        v.value("read_state", &mut self.read_state)?;
        v.value("write_state", &mut self.write_state)?;
        v.value("write_latch", &mut self.write_latch)?;
        v.value("rw_mode", &mut self.rw_mode)?;
        v.value("mode", &mut self.mode)?;
        v.value("bcd", &mut self.bcd)?;
        v.value("gate", &mut self.gate)?;
        v.value("count_load_time", &mut self.count_load_time)?;
        v.value("next_transition_time", &mut self.next_transition_time)
    }
}

/// `mc146818rtc`. Times are on the RTC's own clock (the host's real time, unless told otherwise),
/// ns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RtcState {
    pub cmos: [u8; 128],
    pub cmos_index: u8,
    pub periodic_timer: i64,
    pub next_periodic_time: i64,
    pub irq_coalesced: u32,
    pub period: u32,
    /// Seconds.
    pub base_rtc: u64,
    pub last_update: u64,
    pub offset: i64,
    pub update_timer: i64,
    pub next_alarm_time: u64,
    pub irq_reinject_on_ack_count: Option<u16>,
}

impl Default for RtcState {
    fn default() -> Self {
        Self {
            cmos: [0; 128],
            cmos_index: 0,
            periodic_timer: -1,
            next_periodic_time: 0,
            irq_coalesced: 0,
            period: 0,
            base_rtc: 0,
            last_update: 0,
            offset: 0,
            update_timer: -1,
            next_alarm_time: 0,
            irq_reinject_on_ack_count: None,
        }
    }
}

impl Layout for RtcState {
    const NAME: &'static str = "mc146818rtc";
    const VERSION: u32 = 3;

    fn fields<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.buffer("cmos_data", &mut self.cmos)?;
        v.value("cmos_index", &mut self.cmos_index)?;
        v.unused("unused[0]", 28)?;
        v.timer("periodic_timer", &mut self.periodic_timer)?;
        v.value("next_periodic_time", &mut self.next_periodic_time)?;
        v.unused("unused[1]", 24)?;
        v.value("irq_coalesced", &mut self.irq_coalesced)?;
        v.value("period", &mut self.period)?;
        v.value("base_rtc", &mut self.base_rtc)?;
        v.value("last_update", &mut self.last_update)?;
        v.value("offset", &mut self.offset)?;
        v.timer("update_timer", &mut self.update_timer)?;
        v.value("next_alarm_time", &mut self.next_alarm_time)
    }

    fn subsections<V: Visitor>(&mut self, v: &mut V) -> Result<(), V::Stop> {
        v.subsection_of(
            "mc146818rtc/irq_reinject_on_ack_count",
            "irq_reinject_on_ack_count",
            &mut self.irq_reinject_on_ack_count,
        )
    }
}
