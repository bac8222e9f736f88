//! What an expression may name.

use std::collections::HashMap;
use std::sync::Arc;

use super::types::Type;

/// Finds the type of a message by its name.
type Messages = Arc<dyn Fn(&str) -> Option<Type> + Send + Sync>;

/// Names of variables with their types, and what else differs between the places where expressions stand. All functions
/// are known everywhere, as upstream's base environment has it.
#[derive(Clone, Default)]
pub struct Environment {
    variables: HashMap<String, Type>,
    messages: Option<Messages>,
    patches: bool,
}

impl Environment {
    /// Without variables.
    pub fn new() -> Environment {
        Environment::default()
    }

    /// With one more variable. A name may have dots: `authorizer.requestResource`.
    pub fn with(mut self, name: &str, of: Type) -> Environment {
        self.variables.insert(name.to_string(), of);
        self
    }

    /// With types of messages that expressions can make, and functions for patches (`jsonpatch.escapeKey`).
    pub fn with_messages(
        mut self,
        find: impl Fn(&str) -> Option<Type> + Send + Sync + 'static,
    ) -> Environment {
        self.messages = Some(Arc::new(find));
        self.patches = true;
        self
    }

    pub(super) fn variable(&self, name: &str) -> Option<Type> {
        self.variables.get(name).cloned()
    }

    pub(super) fn message(&self, name: &str) -> Option<Type> {
        self.messages.as_ref()?(name)
    }

    pub(super) fn allows(&self, function: &str) -> bool {
        self.patches || function != "jsonpatch.escapeKey"
    }
}

impl std::fmt::Debug for Environment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Environment")
            .field("variables", &self.variables)
            .finish_non_exhaustive()
    }
}
