{{- define "joulewatch.selector" -}}
app.kubernetes.io/name: joulewatch-exporter
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "joulewatch.labels" -}}
{{ include "joulewatch.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}

{{- define "joulewatch.operatorLabels" -}}
{{ include "joulewatch.labels" . }}
{{- with .Values.prometheusOperator.labels }}
{{ toYaml . }}
{{- end }}
{{- end }}
