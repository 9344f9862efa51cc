// The dashboards and rules of joulewatch as a monitoring mixin. README.md of the folder above shows how to use it.
// Nothing is generated here: it imports the files that Grafana and Prometheus also use without jsonnet.
{
  _config+:: {
    // Matchers of the exporters' series in the rules, such as 'job="joulewatch"'; empty: all exporters.
    joulewatchSelector: '',
    // Address of an alert's runbook, with %s for the name of the alert in lower case; empty: as in the rules.
    runbookURLPattern: '',
    dashboardTags: ['joulewatch'],
  },

  local config = $._config,
  local groups = std.parseYaml(importstr '../rules/joulewatch.rules.yaml').groups
                 + std.parseYaml(importstr '../rules/joulewatch.llm.rules.yaml').groups,

  // Names of metrics begin with this; a recorded series has a level and a colon before it.
  local prefix = 'joulewatch_',
  // Delivered by the harness, so without the target labels of an exporter.
  local ofRuns = ['run_', 'window_', 'result_'],
  local lengthOfName(text) =
    local isPart(char) = (char >= 'a' && char <= 'z') || (char >= '0' && char <= ':') || char == '_';
    local end(index) = if index < std.length(text) && isPart(text[index]) then end(index + 1) else index;
    end(0),

  // Add the matchers to each series of an exporter in a PromQL expression.
  local select(expr) =
    // Before version 0.20, jsonnet splits at single characters only.
    local pieces = std.split(std.strReplace(expr, prefix, '\u0001'), '\u0001');
    local selected(index) =
      local piece = pieces[index];
      local length = lengthOfName(piece);
      local name = prefix + std.substr(piece, 0, length);
      local rest = std.substr(piece, length, std.length(piece) - length);
      if std.endsWith(pieces[index - 1], ':') || std.length([run for run in ofRuns if std.startsWith(piece, run)]) > 0
      then name + rest
      else if std.startsWith(rest, '{')
      then name + '{' + config.joulewatchSelector + ', ' + std.substr(rest, 1, std.length(rest) - 1)
      else name + '{' + config.joulewatchSelector + '}' + rest;
    if config.joulewatchSelector == ''
    then expr
    else pieces[0] + std.join('', [selected(index) for index in std.range(1, std.length(pieces) - 1)]),

  local adapt(rule) = rule {
    expr: select(rule.expr),
    [if std.objectHas(rule, 'alert') && config.runbookURLPattern != '' then 'annotations']+: {
      runbook_url: config.runbookURLPattern % std.asciiLower(rule.alert),
    },
  },
  // Return the groups that have rules of one kind: 'record' or 'alert'.
  local groupsOf(kind) = [
    group { rules: [adapt(rule) for rule in group.rules if std.objectHas(rule, kind)] }
    for group in groups
    if std.length([rule for rule in group.rules if std.objectHas(rule, kind)]) > 0
  ],

  prometheusRules+:: { groups+: groupsOf('record') },
  prometheusAlerts+:: { groups+: groupsOf('alert') },

  grafanaDashboardFolder:: 'joulewatch',
  grafanaDashboards+:: {
    [name]: dashboards[name] { tags: config.dashboardTags }
    for name in std.objectFields(dashboards)
  },
  local dashboards = {
    'joulewatch-experiment.json': import '../experiment.json',
    'joulewatch-fleet.json': import '../fleet.json',
    'joulewatch-llm.json': import '../llm.json',
    'joulewatch-node.json': import '../node.json',
    'joulewatch-results.json': import '../results.json',
    'joulewatch-trust.json': import '../trust.json',
  },
}
