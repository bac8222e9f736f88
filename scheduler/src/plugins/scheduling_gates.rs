//! `SchedulingGates`: a pod with gates stays out of the queue until the last one is removed.

use crate::event::{EventKind, EventMask};
use crate::framework::{Code, Plugin, PreEnqueuePlugin, Rejection};
use crate::pod::PendingPod;

/// The plugin.
pub struct SchedulingGates;

impl Plugin for SchedulingGates {
    fn name(&self) -> &'static str {
        "SchedulingGates"
    }

    fn events(&self) -> EventMask {
        EventMask::of(&[EventKind::PodUpdate])
    }
}

impl PreEnqueuePlugin for SchedulingGates {
    fn pre_enqueue(&self, pod: &PendingPod) -> Result<(), Rejection> {
        if pod.gates.is_empty() {
            return Ok(());
        }
        Err(Rejection {
            code: Code::UnschedulableAndUnresolvable,
            reasons: vec![
                format!("waiting for scheduling gates: [{}]", pod.gates.join(" ")).into(),
            ],
        })
    }
}
