//! Mutating plugins run a second time when a webhook or policy has changed the object after them
//! (`k8s.io/apiserver/pkg/admission.ReinvocationContext`). In the second round the built-in plugins all run; of webhooks
//! and policies those that ask for it, and only when something changed after they ran.

use std::collections::HashSet;

use keelson_machinery::value::Value;

/// The state of one run of the mutating plugins.
#[derive(Clone, Debug, Default)]
pub struct Reinvocation {
    /// This is the second round.
    pub second_round: bool,
    /// Somebody changed the object in a way that others should see.
    pub wanted: bool,
    /// What the webhooks remember.
    pub webhooks: Invocations,
    /// What the policies remember.
    pub policies: Invocations,
}

/// What one plugin remembers of the first round.
#[derive(Clone, Debug, Default)]
pub struct Invocations {
    last: Option<Value>,
    before: HashSet<String>,
    again: HashSet<String>,
}

impl Invocations {
    /// The plugin begins its second round: when others have changed the object meanwhile, all that may be are run
    /// again.
    pub fn resume(&mut self, object: Option<&Value>) {
        if self.last.as_ref() != object {
            self.require_all();
        }
    }

    /// All that ran before and may run again are to run again.
    pub fn require_all(&mut self) {
        self.again.extend(self.before.drain());
    }

    /// Whether one is to run in the second round.
    pub fn is_required(&self, uid: &str) -> bool {
        self.again.contains(uid)
    }

    /// One that may run again has run.
    pub fn ran(&mut self, uid: &str) {
        self.before.insert(uid.to_string());
    }

    /// The plugin's round ends with this object.
    pub fn end(&mut self, object: Option<&Value>) {
        self.last = object.cloned();
    }
}
