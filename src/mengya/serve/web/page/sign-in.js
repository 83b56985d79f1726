if (location.search === "?wrong") document.getElementById("wrong").textContent = "没有这个密钥。 There is no such key.";
const dark = localStorage.getItem("theme");
if (dark) document.documentElement.dataset.theme = dark;
