{{- define "cistern.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}
{{- define "cistern.labels" -}}
app.kubernetes.io/name: cistern
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}
{{- define "cistern.selector" -}}
app.kubernetes.io/name: cistern
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}
{{- /*
What the operator may do in the namespaces that it sees, and nothing else.
- Secrets are got by name, never listed or watched. Those that it creates hold what one Job needs, and go with it.
- No verb and no resource is "*". Nothing is executed in a pod, and no pod is created but through Jobs.
- Roles that it creates give no more than it has: to create a BackupSession, and to report on a Snapshot or RestoreSession.
*/ -}}
{{- define "cistern.rules" -}}
# Storages, policies: users write them. `patch` is for our finalizer.
- apiGroups: [storage.kubestash.com]
  resources: [backupstorages]
  verbs: [get, list, watch, patch]
- apiGroups: [storage.kubestash.com]
  resources: [retentionpolicies]
  verbs: [get, list, watch]
# Repositories and Snapshots: we write them.
- apiGroups: [storage.kubestash.com]
  resources: [repositories, snapshots]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [storage.kubestash.com]
  resources: [backupstorages/status, repositories/status, snapshots/status]
  verbs: [get, patch]
# Owner references that block deletion, where the cluster guards them.
- apiGroups: [storage.kubestash.com]
  resources: [repositories/finalizers, snapshots/finalizers]
  verbs: [update]
- apiGroups: [core.kubestash.com]
  resources: [backupconfigurations, restoresessions]
  verbs: [get, list, watch, patch]
- apiGroups: [core.kubestash.com]
  resources: [backupsessions]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [core.kubestash.com]
  resources: [backupconfigurations/status, backupsessions/status, restoresessions/status]
  verbs: [get, patch]
- apiGroups: [core.kubestash.com]
  resources: [backupconfigurations/finalizers, backupsessions/finalizers, restoresessions/finalizers]
  verbs: [update]
# Which driver mounts a claim's volume.
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [get]
- apiGroups: [""]
  resources: [secrets]
  verbs: [get, create, delete]
- apiGroups: [""]
  resources: [serviceaccounts]
  verbs: [get, create, patch, delete]
# How Jobs go on, and why they do not.
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch]
# What a pod's volume lacks is told in events only.
- apiGroups: [""]
  resources: [events]
  verbs: [list]
- apiGroups: [batch]
  resources: [jobs, cronjobs]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [rbac.authorization.k8s.io]
  resources: [roles, rolebindings]
  verbs: [get, create, patch, delete]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end }}
