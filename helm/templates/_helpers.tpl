{{/* KubeRay makes the names of services and pods from this one, and allows 53 characters. */}}
{{- define "archipelago.name" -}}
{{- .Release.Name | trunc 53 | trimSuffix "-" -}}
{{- end }}

{{- define "archipelago.labels" -}}
app.kubernetes.io/name: archipelago
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{/* The part of every pod's spec but its containers and volumes. `where` is the head or one island. */}}
{{- define "archipelago.pod" -}}
securityContext:
  fsGroup: 100 # group of the image's user, so that it can write to the model cache
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with .where.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .where.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* The part of every container that is the same. */}}
{{- define "archipelago.container" -}}
image: "{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}"
imagePullPolicy: {{ .Values.image.pullPolicy | default "IfNotPresent" }}
env:
  - name: HF_HOME
    value: /models
  {{- with .Values.huggingFaceSecret }}
  - name: HF_TOKEN
    valueFrom:
      secretKeyRef:
        name: {{ . }}
        key: token
  {{- end }}
{{- end }}

{{- define "archipelago.modelCacheVolume" -}}
- name: models
  {{- with (.Values.modelCache).claim }}
  persistentVolumeClaim:
    claimName: {{ . }}
  {{- else }}
  emptyDir: {}
  {{- end }}
{{- end }}
