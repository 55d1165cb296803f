//! What is wrong with a document: all of it at once, each with the path of its field.

use serde::Serialize;

/// One thing that is wrong with a document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The field, such as `spec.sessions[0].repositories[1].directory`.
    pub path: String,
    /// What is wrong, for a person.
    pub message: String,
    /// Whether the document is right and something that it names is not there (yet).
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub missing: bool,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.path, self.message)
    }
}

/// Problems while they are gathered.
#[derive(Clone, Debug, Default)]
pub struct Problems(pub Vec<Problem>);

impl Problems {
    /// The field says something that cannot be done.
    pub fn wrong(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.0.push(Problem { path: path.into(), message: message.into(), missing: false });
    }

    /// The field names something that is not there.
    pub fn missing(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.0.push(Problem { path: path.into(), message: message.into(), missing: true });
    }

    /// The field is understood, and what it asks for is not there yet in this program.
    pub fn unsupported(&mut self, path: impl Into<String>, what: &str) {
        self.wrong(path, format!("{what} not supported yet"));
    }

    /// The value if nothing is wrong, or everything that is.
    ///
    /// # Errors
    /// The problems, if there are any.
    ///
    /// # Panics
    /// There is neither a value nor a problem: whoever gathers must say why there is no value.
    pub fn finish<T>(self, value: Option<T>) -> Result<T, Vec<Problem>> {
        match (value, self.0.is_empty()) {
            (Some(value), true) => Ok(value),
            (value, false) => {
                drop(value);
                Err(self.0)
            }
            (None, true) => panic!("no value, and nobody said why"),
        }
    }
}
