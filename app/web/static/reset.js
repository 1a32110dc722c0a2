// Takes the token out of the address and puts it into the form, so that nobody has to.

const field = document.getElementById("token");
const token = location.hash.slice(1);

if (field && token) {
  field.value = token;
  history.replaceState(null, "", location.pathname); // it is in no history and no bookmark
}
if (field?.value && !field.hasAttribute("aria-invalid")) {
  document.getElementById("token-row").hidden = true;
}
