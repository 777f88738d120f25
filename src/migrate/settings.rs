//! Capabilities and parameters of one VMM, shared by QMP and the migrations that run.

use std::sync::{Arc, Mutex, MutexGuard};

use super::capabilities::{Capabilities, Capability};
use super::parameters::Parameters;
use crate::io::Limit;

pub struct Settings {
    capabilities: Mutex<Capabilities>,
    parameters: Mutex<Parameters>,
    /// max-bandwidth, where the writers look.
    pub limit: Arc<Limit>,
}

impl Default for Settings {
    fn default() -> Self {
        let parameters = Parameters::default();
        let limit = Arc::new(Limit::new(parameters.max_bandwidth));
        Self { capabilities: Mutex::default(), parameters: Mutex::new(parameters), limit }
    }
}

impl Settings {
    pub(crate) fn has(&self, capability: Capability) -> bool {
        self.capabilities().has(capability)
    }

    pub fn capabilities(&self) -> Capabilities {
        *lock(&self.capabilities)
    }

    pub fn set_capabilities(&self, capabilities: Capabilities) {
        *lock(&self.capabilities) = capabilities;
    }

    pub fn parameters(&self) -> Parameters {
        lock(&self.parameters).clone()
    }

    pub fn set_parameters(&self, parameters: Parameters) {
        self.limit.set(parameters.max_bandwidth);
        *lock(&self.parameters) = parameters;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
